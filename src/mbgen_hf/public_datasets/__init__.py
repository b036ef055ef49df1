"""The five public logs of the two papers: what they are, how to read them, how to publish them prepared."""
