"""Three tasks, each written out in full for three libraries; ``count.py`` counts lines."""
