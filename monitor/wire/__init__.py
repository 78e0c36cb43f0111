"""Frames on the wire: the generated protobuf code and the codec between bytes and tensors."""
