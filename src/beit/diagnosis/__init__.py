"""What is wrong with images, with the machine, or with the plan of a training, before it runs."""
