"""What no field of a weight file's card may hold: JSON fragments per field, for the fuzz tests."""

import json

DEEP = "[" * 300 + "]" * 300
ODD = ["null", "true", "[]", "NaN", "Infinity", "-Infinity", "1e999", "9" * 400, DEEP, '{"a": [1]}', '["a", [1]]']
NUMBER = [*ODD, "{}", "-1", "1e30", '"0.5"', "false", "-1e-300"]
WHOLE = [*NUMBER, "1.5", "4.0", str(2**63)]
TEXT = [*ODD, "{}", "0", "1.5", '"\\u0000"', '"\\u001b[31m"', '"\\ud800"', json.dumps("x" * 200_000)]
OBJECT = [
    *[value for value in ODD if value[0] != "{"],
    "0",
    '"x"',
    f'{{"a": {DEEP}}}',
    '{"a": NaN}',
    '{"a": "\\ud800"}',
]
NOTES = [*OBJECT, '{"figures": 1}', '{"figures": null}', "{" + ", ".join(f'"{i}": {i}' for i in range(30_000)) + "}"]
CARD_FIELDS = {
    "base_model": TEXT,
    "target": TEXT,
    "kappa": [*NUMBER, "0", "1", "0.999", "1.0", "1e7"],
    "threshold": [*NUMBER, "0", "0.0", "-0.0", "1.0000001", "2", "-0.3"],
    "false_positive_rate": [*NUMBER, "1.1", "-0.01"],
    "calibration_count": WHOLE,
    "data": TEXT,
    "licence": TEXT,
    "training": NOTES,
    "base_hash": TEXT,
    "data_hash": TEXT,
    "counts": [*OBJECT, '{"a": -1}', '{"a": 1.5}', '{"a": true}', '{"a": "1"}', '{"a": null}'],
}
NETWORK_FIELDS = {
    "context_width": [*WHOLE, "0", "17", "100000"],
    "categories": [*ODD, "{}", '"ab"', '["a", "a"]', '["a", ""]', '["a", " "]', "[1, 2]", '["a", null]', '["a"]'],
    "width": [*WHOLE, "0", "15", "100000", "16384"],
    "layers": [*WHOLE, "0", "2", "64", "100000", "1000000"],
    "heads": [*WHOLE, "0", "3", "17", "100000"],
    "chunk": [*WHOLE, "100000"],
    "edges": [*ODD, "{}", "0", '"0"', "[0.5]", "[0, 1]", "[0, 0.5, 0.5]", "[0, NaN]", "[false]", "[0, 0.5]", "[-0.1]"],
    "pooled_width": [*WHOLE, "8", "100000"],
}
LORA_FIELDS = {key: TEXT for key in ("base_model", "redirector", "data", "licence", "base_hash", "data_hash")} | {
    "threshold": [*NUMBER, "1.1"],
    "prompts": WHOLE,
    "judged_harmful": WHOLE,
    "training": NOTES,
}
TEXT_FIELDS = {"encoder": TEXT, "encoder_hash": TEXT} | {
    key: CARD_FIELDS[key]
    for key in (
        "threshold",
        "false_positive_rate",
        "calibration_count",
        "data",
        "licence",
        "training",
        "data_hash",
        "counts",
    )
}
