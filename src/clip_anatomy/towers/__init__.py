"""The transformer and the ResNet as data and forward, and what one forward records."""
