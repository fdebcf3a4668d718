"""The HTTP face of a master: any process fetches the model, and posts updates to the training that runs"""
