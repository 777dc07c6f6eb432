"""What people would say of an emoji and its style, in five languages; parts may be left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

Language = Literal["en", "de", "fr", "es", "it"]

#: Phrases of each style, which stand after a name, before it or alone. The first is what the benchmark says.
STYLE_PHRASES: dict[str, dict[Language, tuple[str, ...]]] = {
    "fluent-3d": {
        "en": ("in 3d", "as a 3d model", "as a glossy 3d render", "modelled in 3d"),
        "de": ("in 3d", "als 3d-modell", "plastisch in 3d"),
        "fr": ("en 3d", "en modèle 3d", "en rendu 3d brillant"),
        "es": ("en 3d", "como modelo 3d", "como figura 3d brillante"),
        "it": ("in 3d", "come modello 3d", "come figura 3d lucida"),
    },
    "fluent-flat": {
        "en": ("in flat colors", "as a flat picture", "flat without shading", "as flat shapes"),
        "de": ("in flachen farben", "als flaches bild", "flach ohne schatten"),
        "fr": ("en aplats de couleur", "en image plate", "à plat sans ombres"),
        "es": ("en colores planos", "como imagen plana", "plano sin sombras"),
        "it": ("a colori piatti", "come immagine piatta", "piatto senza ombre"),
    },
    "fluent-line": {
        "en": ("as line art", "as a black and white drawing", "in black lines", "as an outline"),
        "de": ("als strichzeichnung", "als schwarzweiße zeichnung", "in schwarzen linien"),
        "fr": ("en dessin au trait", "en noir et blanc", "en lignes noires"),
        "es": ("como dibujo de líneas", "en blanco y negro", "en líneas negras"),
        "it": ("come disegno a linee", "in bianco e nero", "a linee nere"),
    },
    "noto": {
        "en": ("in the noto style", "as a noto emoji", "as noto draws it", "softly shaded like noto"),
        "de": ("im noto-stil", "als noto-emoji", "wie noto es zeichnet"),
        "fr": ("dans le style noto", "en emoji noto", "comme noto le dessine"),
        "es": ("al estilo noto", "como emoji de noto", "como lo dibuja noto"),
        "it": ("nello stile noto", "come emoji noto", "come lo disegna noto"),
    },
    "noto-blob": {
        "en": ("as a blob", "as a blob emoji", "in the blob style", "as a soft blob"),
        "de": ("als blob", "als blob-emoji", "im blob-stil"),
        "fr": ("en blob", "en emoji blob", "dans le style blob"),
        "es": ("como blob", "como emoji blob", "al estilo blob"),
        "it": ("come blob", "come emoji blob", "nello stile blob"),
    },
    "twemoji": {
        "en": ("in the twemoji style", "as a twemoji", "as twemoji draws it", "as twitter draws it"),
        "de": ("im twemoji-stil", "als twemoji", "wie twitter es zeichnet"),
        "fr": ("dans le style twemoji", "en twemoji", "comme twitter le dessine"),
        "es": ("al estilo twemoji", "como twemoji", "como lo dibuja twitter"),
        "it": ("nello stile twemoji", "come twemoji", "come lo disegna twitter"),
    },
    "emojione": {
        "en": ("in the emojione style", "as an emojione picture", "as emojione draws it", "like emojione"),
        "de": ("im emojione-stil", "als emojione-bild", "wie emojione es zeichnet"),
        "fr": ("dans le style emojione", "en image emojione", "comme emojione le dessine"),
        "es": ("al estilo emojione", "como imagen de emojione", "como lo dibuja emojione"),
        "it": ("nello stile emojione", "come immagine emojione", "come lo disegna emojione"),
    },
    "openmoji": {
        "en": ("in the openmoji style", "as an openmoji", "as openmoji draws it"),
        "de": ("im openmoji-stil", "als openmoji", "wie openmoji es zeichnet"),
        "fr": ("dans le style openmoji", "en openmoji", "comme openmoji le dessine"),
        "es": ("al estilo openmoji", "como openmoji", "como lo dibuja openmoji"),
        "it": ("nello stile openmoji", "come openmoji", "come lo disegna openmoji"),
    },
}
_AND: dict[Language, str] = {"en": "and", "de": "und", "fr": "et", "es": "y", "it": "e"}
_ORDER: tuple[Language, ...] = ("en", "de", "fr", "es", "it")


def _table(**rows: tuple[str, str, str, str, str]) -> dict[str, dict[Language, str]]:
    return {name.replace("_", "-"): dict(zip(_ORDER, words, strict=True)) for name, words in rows.items()}


_COLORS = _table(
    red=("red", "rot", "rouge", "rojo", "rosso"),
    orange=("orange", "orange", "orange", "naranja", "arancione"),
    yellow=("yellow", "gelb", "jaune", "amarillo", "giallo"),
    green=("green", "grün", "vert", "verde", "verde"),
    blue=("blue", "blau", "bleu", "azul", "blu"),
    light_blue=("light blue", "hellblau", "bleu clair", "celeste", "azzurro"),
    purple=("purple", "lila", "violet", "morado", "viola"),
    brown=("brown", "braun", "marron", "marrón", "marrone"),
    black=("black", "schwarz", "noir", "negro", "nero"),
    grey=("grey", "grau", "gris", "gris", "grigio"),
    white=("white", "weiß", "blanc", "blanco", "bianco"),
    pink=("pink", "rosa", "rose", "rosa", "rosa"),
)
_IN: dict[Language, str] = {"en": "in", "de": "in", "fr": "en", "es": "en", "it": "in"}
_GROUND: dict[Language, str] = {
    "en": "on a {} background",
    "de": "auf {} als hintergrund",
    "fr": "sur un fond {}",
    "es": "sobre un fondo {}",
    "it": "su uno sfondo {}",
}
_CHANGES: dict[str, dict[str, dict[Language, str]]] = {
    "tone": _table(
        light=("with light skin", "mit heller haut", "à la peau claire", "de piel clara", "con pelle chiara"),
        medium_light=(
            "with medium-light skin",
            "mit mittelheller haut",
            "à la peau moyennement claire",
            "de piel clara media",
            "con pelle abbastanza chiara",
        ),
        medium=(
            "with medium skin",
            "mit mittlerer hautfarbe",
            "à la peau mate",
            "de piel media",
            "con pelle media",
        ),
        medium_dark=(
            "with medium-dark skin",
            "mit mitteldunkler haut",
            "à la peau moyennement foncée",
            "de piel oscura media",
            "con pelle abbastanza scura",
        ),
        dark=("with dark skin", "mit dunkler haut", "à la peau foncée", "de piel oscura", "con pelle scura"),
    ),
    "gender": _table(
        woman=("as a woman", "als frau", "en femme", "como mujer", "come donna"),
        man=("as a man", "als mann", "en homme", "como hombre", "come uomo"),
        person=("as a person", "als person", "en personne", "como persona", "come persona"),
    ),
    "hair": _table(
        red=("with red hair", "mit roten haaren", "aux cheveux roux", "de pelo rojo", "con capelli rossi"),
        curly=("with curly hair", "mit locken", "aux cheveux bouclés", "de pelo rizado", "con capelli ricci"),
        white=(
            "with white hair",
            "mit weißen haaren",
            "aux cheveux blancs",
            "de pelo blanco",
            "con capelli bianchi",
        ),
        bald=("without hair", "mit glatze", "sans cheveux", "sin pelo", "senza capelli"),
    ),
    "color": {
        color: {language: f"{_IN[language]} {words[language]}" for language in _ORDER}
        for color, words in ((name.replace("-", " "), words) for name, words in _COLORS.items())
    },
}


def pick(words: Sequence[str], rng: np.random.Generator) -> str:
    return words[int(rng.integers(len(words)))]


def style_phrase(style: str, language: Language, rng: np.random.Generator | None = None) -> str:
    """How one asks for a style: any of its phrases, or the first without `rng`."""
    phrases = STYLE_PHRASES[style][language]
    return phrases[0] if rng is None else pick(phrases, rng)


def change_phrase(kind: str, value: str, language: Language) -> str | None:
    """How one asks for another tone, gender, hair or colour; None for the plain one, which has no words."""
    said = _CHANGES[kind].get(value)
    return None if said is None else said[language]


def ground_phrase(color: str, language: Language) -> str:
    return _GROUND[language].format(_COLORS[color][language])


def name_or_tags(
    names: Mapping[str, str],
    tags: Mapping[str, Sequence[str]],
    language: Language,
    rng: np.random.Generator,
    omit: float,
) -> str:
    """The subject's name, or with probability `omit` up to three of its tags."""
    known = tags.get(language, ())
    if known and rng.random() < omit:
        chosen = rng.permutation(len(known))[: 1 + int(rng.integers(3))]
        return ", ".join(known[i] for i in chosen)
    return names[language]


def with_style(name: str, phrase: str, rng: np.random.Generator | None = None) -> str:
    """Name and phrase in one of four orders; plainly one after the other without `rng`."""
    forms = ("{0} {1}", "{0}, {1}", "{1}: {0}", "{1}, {0}")
    return (forms[0] if rng is None else pick(forms, rng)).format(name, phrase)


def joined(texts: Sequence[str], language: Language) -> str:
    return f" {_AND[language]} ".join(texts)
