"""``fastclip bench``: fastclip beside other libraries, and beside the bandwidth of the machine."""
