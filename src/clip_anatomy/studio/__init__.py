"""The studio: a web page that takes a CLIP apart and puts it right. It only calls public functions; nothing imports it but its verb."""
