"""The mathematics: pure functions of tensors; noise is an argument, never drawn inside."""
