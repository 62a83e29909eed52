"""What models are made of, and what every floor above needs: errors, strict configuration, lazy names."""
