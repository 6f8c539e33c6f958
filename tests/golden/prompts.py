"""The 20 prompts of the logits goldens. `CHAT` entries go through the model's template where it has one."""

LIGHTHOUSE = (
    "The lighthouse stood at the end of a long spit of shingle, and for most of the year nobody went there. "
    "In spring the keeper's daughter walked the four miles to the village twice a week, carrying eggs to sell "
    "and letters to post; in winter she stayed at home, learned the names of the stars, and wrote down the "
    "weather in a blue ledger. The ledger had begun with her grandfather. It listed the wind, the height of the "
    "barometer, the ships that passed and, in a narrow column at the edge of the page, anything that had "
    "seemed strange. On most days that column was empty. "
)
STRANGE = (
    "On the ninth of November it held three lines. A small boat had come in without oars, she wrote, and in it "
    "a dog, two loaves of bread still warm, and a clock that ran backwards. Her father read the entry twice, "
    "took off his spectacles, and asked where the dog was now. It was asleep under the table. They ate the "
    "bread, because it would have been a shame not to, and wound the clock, because clocks are made to be wound. "
    "Then they sat down to wait for whoever had lost them, and while they waited the girl began a fresh page. "
)

PLAIN = {
    "one_word": "Once",
    "prose": "The capital of France is Paris. The capital of Germany is",
    "story": "Once upon a time, in a small village by the sea, there lived a clockmaker who",
    "science": "Photosynthesis is the process by which plants use sunlight, water and carbon dioxide to",
    "python": 'def is_prime(n: int) -> bool:\n    """Return True if n is a prime number."""\n    if n < 2:\n        return False\n',
    "rust": "use std::collections::HashMap;\n\n/// Counts how often each word occurs in `text`.\npub fn word_counts(text: &str) -> HashMap<String, usize> {\n    let mut counts = HashMap::new();\n",
    "javascript": "// Debounce a function call.\nfunction debounce(fn, wait) {\n  let timer = null;\n  return function (...args) {\n",
    "c_tabs": "#include <stdio.h>\n#include <stdlib.h>\n\nstatic int cmp(const void *a, const void *b)\n{\n\tint x = *(const int *)a, y = *(const int *)b;\n\treturn",
    "sql": "-- Monthly revenue per customer, largest first\nSELECT c.name, DATE_TRUNC('month', o.created_at) AS month,",
    "html": '<!DOCTYPE html>\n<html lang="en">\n<head>\n  <meta charset="utf-8">\n  <title>Todo list</title>\n</head>\n<body>\n',
    "chinese": "人工智能是计算机科学的一个分支,它的目标是",
    "japanese": "吾輩は猫である。名前はまだ",
    "french": "Il était une fois, dans un petit village de montagne, une vieille dame qui",
    "numbers": "1, 2, 4, 8, 16, 32, 64,",
    "list": "Shopping list:\n1. Apples\n2. Bread\n3. Cheese\n4.",
    "json": '{"users": [\n  {"id": 1, "name": "Ada", "languages": ["en", "fr"], "active": true},\n  {"id": 2, "name": "Grace", "languages": ["en"], "active": false},\n  {"id": 3,',
    "repeated": "the quick brown fox jumps over the lazy dog. " * 8,
    "long": LIGHTHOUSE + STRANGE,
}
CHAT = {
    "chat_plain": [{"role": "user", "content": "Explain in two sentences why the sky is blue."}],
    "chat_system": [
        {"role": "system", "content": "You are a careful programmer. Answer with code only."},
        {"role": "user", "content": "Write a Python function that reverses a linked list. 🙂"},
        {"role": "assistant", "content": "def reverse(head):\n    prev = None\n"},
        {"role": "user", "content": "Now finish it."},
    ],
}
# Longer than Gemma 3's window of 512 positions, so that windows matter.
VERY_LONG = (LIGHTHOUSE + STRANGE) * 3 + LIGHTHOUSE


def prompts(render=None):
    """name -> text. `render(messages)` applies a chat template; without one, chats become a plain dialogue."""
    texts = dict(PLAIN)
    for name, messages in CHAT.items():
        if render is not None:
            texts[name] = render(messages)
        else:
            texts[name] = "\n".join(f"{m['role'].title()}: {m['content']}" for m in messages) + "\nAssistant:"
    texts["very_long"] = VERY_LONG
    return texts
