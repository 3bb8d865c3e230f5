"""AMCT's functions, one for each step, over the engine's own passes.

    create_quant_config ─ config.json
        (quantize_preprocess ─ a model that notes maxima ─ the user's loop ─ record.txt with balance factors)
    quantize_model ─ a model that observes, record.txt with the scales of the weights
        the user's loop ─ record.txt with all scales
    save_model ─ deploy and fake-quant model

Nothing is kept between the steps but these files, so each may run in a process of its own.
"""
