"""What a backbone sees: the images nearest to a photo, and a page of a whole set."""
