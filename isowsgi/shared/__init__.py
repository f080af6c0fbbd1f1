"""What any process and interpreter of isowsgi may import: mechanism that two sides share. Standard library and gunicorn's parser only."""
