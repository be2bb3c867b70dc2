"""The communicator's calls beside gloo's and OpenMPI's: what `fusionkit bench collectives` does."""
