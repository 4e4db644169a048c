"""Networks by name: a module here is one, which it calls `network`.

| name | what |
|---|---|
| `mlp` | ReLU perceptron, as in the paper's release |
| `layernorm` | the same with layer normalisation before each ReLU |
| `simba` | residual blocks with layer normalisation |
"""
