"""The transformer and the ResNet as data and forward, behind one protocol; what one forward records (trace)."""
