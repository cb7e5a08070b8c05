"""What a model makes of a sample, as pictures and text: answers, errors, merged groups."""
