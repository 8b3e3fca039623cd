"""The labelling page: a small web application over the file of a labelling task."""
