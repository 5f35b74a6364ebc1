"""The rows of ``fastclip bench --gpu``: arrays that are on a graphics processor."""
