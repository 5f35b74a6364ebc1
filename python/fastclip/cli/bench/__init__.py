"""``fastclip bench``: compares the speed of fastclip with other libraries and with the memory bandwidth."""
