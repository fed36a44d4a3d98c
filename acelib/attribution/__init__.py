"""Where knowledge is: scores of neurons and layers, and interventions."""
