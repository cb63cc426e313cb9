"""Side-by-side measurements against peers; `zoo bench` and the scripts of this folder run them."""
