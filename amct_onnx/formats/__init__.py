"""Outside formats: configurations become `QuantConfig`, record files become `LayerRecord`. The only protobuf."""
