"""What the teacher compares images with: vocabularies, prompt banks and the soft labels they give."""
