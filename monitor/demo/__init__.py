"""The demo assistant and its scripted conversations."""
