"""Model types of transformers, one file each: configuration and tensor names, both ways."""
