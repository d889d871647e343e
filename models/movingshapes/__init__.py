"""The shipped model: a synthetic world of moving shapes, its training, and its analyzer."""
