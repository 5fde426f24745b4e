"""The bundled demo set: pictures with captions, and what the real web does to them."""
