"""The file formats of ``fastclip clip``: npz and safetensors."""
