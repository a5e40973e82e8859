"""The networks: autoencoders, the latent operator, baselines."""
