"""The paper's recipes, figures and evaluation."""
