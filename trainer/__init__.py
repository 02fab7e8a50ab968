"""What ``train.py`` is made of: its options, and what is built and run from them."""
