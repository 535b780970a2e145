"""The model in plain torch. Every layer but attention is token-wise and written once; a layout says how tokens form
sequences.
"""
