"""Keys of transformers' config.json that change nothing of what is computed here."""

from __future__ import annotations

from typing import Any

_GENERATION = "what transformers' own generate() does with the model"
_OUTPUTS = "what a call of transformers returns"
_TRAINING = "acts in training, or before it, alone"

#: {pattern of a key: why it changes nothing}; for `Settings.done`.
UNUSED: dict[str, str] = {
    r"architectures|_name_or_path|name_or_path|tokenizer_class|prefix": "where the weights come from",
    r"transformers_version|_commit_hash|torch_dtype|dtype|use_bfloat16|torchscript": "how they were saved",
    r"_?attn_implementation(_autoset|_internal)?|_attn_implementation|use_flash_attention_2": "which kernel",
    r"return_dict|output_(hidden_states|attentions|past)|use_return_dict|use_cache|tf_legacy_loss": _OUTPUTS,
    r"chunk_size_feed_forward|gradient_checkpointing": "memory, not numbers",
    r"(bos|pad|sep|cls|mask|decoder_start)_token_id": "the tokenizer says it",
    r"task_specific_params|(max|min)_length|do_sample|early_stopping|num_beams|num_beam_groups": _GENERATION,
    r"diversity_penalty|temperature|top_[kp]|typical_p|(repetition|length)_penalty": _GENERATION,
    r"(encoder_)?no_repeat_ngram_size|bad_words_ids|num_return_sequences|output_scores": _GENERATION,
    r"return_dict_in_generate|forced_(bos|eos)_token_id|remove_invalid_values": _GENERATION,
    r"exponential_decay_length_penalty|(begin_)?suppress_tokens": _GENERATION,
    r"initializer_(range|factor)|problem_type|finetuning_task": _TRAINING,
    r"id2label|label2id|num_labels|classifier_dropout|summary_\w+": "a classifier's head, which is not read",
}

#: Keys that stand in many files, and the values that change nothing.
ACCEPTED: dict[str, tuple[Any, ...]] = {
    "add_cross_attention": (False,),
    "cross_attention_hidden_size": (),
    "is_decoder": (False,),
    "is_encoder_decoder": (False,),
    "pruned_heads": ({},),
    "quantization_config": (),
    "tie_encoder_decoder": (False,),
}
