"""ONNX: files as functions of JAX that have bounds (`reader`), and such functions as files (`writer`)."""
