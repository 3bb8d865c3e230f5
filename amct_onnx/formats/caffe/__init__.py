"""Caffe's models: the network as text (.prototxt) and its weights (.caffemodel) -> one ONNX model."""
