"""Outside formats: configurations become `QuantConfig`, records `LayerRecord`, Caffe models ONNX. The only protobuf."""
