"""Measurements of fusedmix beside its peers. Every file in results/ names the command, the machine and the commit."""
