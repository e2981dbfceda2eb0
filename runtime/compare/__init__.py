"""How far folders are from their FP16 baseline, what of it is more than chance, and whether they may ship."""
