"""Texts for the tokenizer goldens: name -> text. Varied on purpose, see the groups."""

PROSE = {
    "prose_en": "The old lighthouse keeper counted the ships, one by one, until the fog swallowed the last of them.",
    "prose_two_paragraphs": "It rained all week.\n\nOn Sunday, though, the sun came back; nobody had expected it.\n",
    "prose_de": "Die Straßenbahn fährt über die Brücke – „schön“, sagte Jörg, während er sein Käsebrötchen aß.",
    "prose_fr": "L'été dernier, j'ai mangé des crêpes à l'Île d'Oléron où il faisait très chaud… N'est-ce pas ?",
    "prose_es": "¿Dónde está el niño? ¡Ayer llegó con su abuela y una piñata de cartón!",
    "prose_pl_cz_tr": "Zażółć gęślą jaźń. Příliš žluťoučký kůň. Iğdır'ın ılık rüzgârı İstanbul'a ulaştı.",
    "prose_ru": "Съешь же ещё этих мягких французских булок, да выпей чаю.",
    "prose_el": "Η γρήγορη αλεπού πηδάει πάνω από το τεμπέλικο σκυλί· ταΐζω τη γάτα.",
    "prose_vi": "Tiếng Việt có nhiều dấu: ở đâu, nghĩa là gì, người, đường phố.",
    "contractions": "I'm sure they'll say we've won, but it's what he'd do; don't y'all? I'M SURE THEY'LL, WE'VE, IT'S HE'D DON'T",
    "contractions_curly": "I’m sure it’s what they’ll do, isn’t it? ‘Yes’ — “maybe”.",
    "title_case": "HelloWorld helloWorld HELLOWORLD hello_world hello-world Hello  World",
}

CODE = {
    "code_python": 'def fib(n: int) -> int:\n    """Return fib(n)."""\n    a, b = 0, 1\n    for _ in range(n):\n        a, b = b, a + b\n    return a\n\n\nprint([fib(i) for i in range(10)])\n',
    "code_rust": "impl<'a, T: Clone + 'static> Iterator for Chunks<'a, T> {\n    type Item = &'a [T];\n    fn next(&mut self) -> Option<Self::Item> {\n        if self.v.is_empty() { return None; }\n        let n = core::cmp::min(self.v.len(), self.size);\n        let (a, b) = self.v.split_at(n);\n        self.v = b;\n        Some(a)\n    }\n}\n",
    "code_c_tabs": "#include <stdio.h>\n\nint main(void)\n{\n\tfor (int i = 0; i < 10; ++i) {\n\t\tif (i % 2 == 0)\n\t\t\tprintf(\"%d\\n\", i);\n\t}\n\treturn 0;\n}\n",
    "code_js": "const f = async ({ id, ...rest }) => {\n  const r = await fetch(`/api/${id}?q=${encodeURIComponent(rest.q ?? '')}`);\n  if (!r.ok) throw new Error(`HTTP ${r.status}`);\n  return (await r.json()).items?.map((x) => x.name);\n};\n",
    "code_html": "<!DOCTYPE html>\n<html>\n<body>\n<h1>Title</h1>\n<table><tr><td>1</td><td><b>bold</b></td></tr></table>\n<a href=\"https://example.org/?a=1&amp;b=2\">link</a><br/>\n</body>\n</html>\n",
    "code_sql": "SELECT u.id, COUNT(*) AS n\nFROM users u LEFT JOIN orders o ON o.user_id = u.id\nWHERE u.created_at >= '2024-01-31' AND o.total > 99.95\nGROUP BY 1 HAVING COUNT(*) > 3;",
    "code_json": '{"name": "wick", "list": [1, 2.5, -3e10, true, null], "nested": {"k\\u00e9y": "va\\"lue"}}',
    "code_shell": "#!/bin/sh\nset -eu\nfor f in *.txt; do\n  grep -n 'a\\|b' \"$f\" | awk '{print $1}' >> out.log 2>&1 || true\ndone\n",
    "code_latex": "\\begin{align} \\int_0^\\infty e^{-x^2}\\,dx &= \\frac{\\sqrt{\\pi}}{2} \\\\ \\sum_{i=1}^{n} i &= \\frac{n(n+1)}{2} \\end{align}",
    "code_regex": r"^(?:\+\d{1,3}[ -]?)?\(?\d{3}\)?[ .-]?\d{3}[ .-]?\d{4}$",
    "markdown": "# Heading\n\n- item *one*\n- item **two**\n  1. nested\n\n| a | b |\n|---|---|\n| 1 | `x` |\n\n> quote\n\n```py\nx = 1\n```\n",
    "yaml": "services:\n  web:\n    image: nginx:1.27\n    ports: [\"80:80\", '443:443']\n    environment:\n      - KEY=va lue\n",
    "indent_deep": "if a:\n    if b:\n        if c:\n            if d:\n                return {\n                    'x': 1,\n                }\n",
}

NUMBERS = {
    "numbers": "0 1 12 123 1234 12345 123456 1234567 3.14159 -42 1,000,000 1e-9 0xDEADBEEF 007",
    "numbers_glued": "a1b22c333d4444e55555 2024-01-31T23:59:59.999Z v1.2.3-rc4",
    "digits_after_spaces": "Chapter  12:   3 apples,\n  4 pears\n\n    56 \t7\n8 9\n",
    "numbers_unicode": "١٢٣ ४५६ ７８９ Ⅷ ½ ² ³ ① 𝟘𝟙 百二十三",
    "phone_ip": "+49 (30) 1234-5678, 192.168.0.1:8080, 2001:db8::ff00:42:8329, $1,234.56, 50%",
    "math": "∀x∈ℝ: x²≥0 ⇒ ∃y, y=√x; a≠b, α+β=γ, ∑∞ ≈ 1.0",
}

UNICODE = {
    "emoji": "😀 🎉🎉 ❤️ ✨ 🚀!",
    "emoji_zwj": "👩‍👩‍👧‍👦 👨🏽‍💻 🏳️‍🌈 👍🏿 🧑‍🚀 ❤️‍🔥",
    "emoji_flags_keycaps": "🇩🇪🇯🇵🇧🇷 1️⃣2️⃣#️⃣ ☎️ ™️",
    "chinese": "人工智能正在改变世界。今天天气很好，我们去公园散步吧！",
    "chinese_traditional": "臺灣的夜市有很多好吃的東西，例如：珍珠奶茶、蚵仔煎。",
    "japanese": "吾輩は猫である。名前はまだ無い。カタカナとｶﾀｶﾅ、ひらがな。",
    "korean": "안녕하세요, 만나서 반갑습니다. 오늘 날씨가 좋네요!",
    "korean_jamo": "\u1112\u1161\u11ab\u1100\u1173\u11af",
    "arabic": "السلام عليكم، كيف حالك اليوم؟ مُحَمَّدٌ",
    "hebrew": "שלום עולם, מה שלומך היום? בְּרֵאשִׁית",
    "hindi": "नमस्ते दुनिया, आप कैसे हैं? क्षत्रिय ज्ञान",
    "thai": "สวัสดีชาวโลก วันนี้อากาศดีมาก",
    "tamil_bengali": "வணக்கம் உலகம் বাংলা ভাষা",
    "georgian_armenian_amharic": "გამარჯობა Բարեւ ሰላም",
    "combining": "e\u0301 a\u0308 o\u0302\u0323 n\u0303 Z\u0351\u036b\u0343a\u0300\u0301\u0302l\u0327g\u030ao",
    "precomposed": "é ä ộ ñ Å \u212b \u2126 \ufb01",
    "nfc_exclusions": "\u0958 \u0344 \u2adc \ufb1d e\u0328\u0301 e\u0301\u0328",
    "private_and_rare": "\ue000 \U0001f9ff \U00020000\U0002a6d6 \U000f0000 \U0010ffff",
    "bidi_zero_width": "a\u200bb\u200cc\u200dd\u2060e\ufefff \u202eabc\u202c \u00ad",
    "fullwidth": "Ｆｕｌｌｗｉｄｔｈ　ＴＥＸＴ！",
    "mixed_scripts": "Hello мир 世界 🌍 مرحبا नमस्ते 123 café",
    "box_drawing": "┌──┬──┐\n│a │ b│\n└──┴──┘ █▓▒░▁░",
}

WHITESPACE = {
    "empty": "",
    "one_space": " ",
    "two_spaces": "  ",
    "spaces_growing": "a b  c   d    e     f      g       h        i                j",
    "spaces_31": "x" + " " * 31 + "y",
    "spaces_70": "x" + " " * 70 + "y",
    "leading_trailing": "   leading and trailing   ",
    "newline_runs": "a\nb\n\nc\n\n\nd\n\n\n\n\ne" + "\n" * 40 + "f",
    "tabs": "\ta\t\tb\t\t\tc\t\t\t\t\t\t\t\td",
    "crlf": "line one\r\nline two\r\n\r\nline three\rline four\n\r",
    "mixed_whitespace": " \n \t\n  x \r\n\t y\n ",
    "trailing_newline_space": "end of line \n next\n  \n",
    "unicode_spaces": "a\u00a0b\u2003c\u3000d\u2028e\u0085f\u1680g",
    "vertical_form_feed": "a\x0bb\x0cc",
}

CONTROL = {
    "control_lone": "\x00",
    "control_each": "".join(chr(c) for c in range(0x20) if c not in (9, 10, 13)),
    "control_mixed": "a\x00b\x01c\x04d\x1be[0m\x7ff\x9fg",
    "replacement": "\ufffd\ufffd x \ufffe",
}

LONG = {
    "very_long_word": "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft" * 4,
    "repeated_char": "a" * 300,
    "repeated_punctuation": "!" * 65 + "?" * 33 + "=" * 80 + "-" * 47 + "#" * 20,
    "base64": "aGVsbG8gd29ybGQhIFRoaXMgaXMgYmFzZTY0IHRleHQgd2l0aCBubyBzcGFjZXMgYXQgYWxsLg==" * 2,
    "url": "https://user:pa%20ss@sub.example.co.uk:8443/path/to/file.tar.gz?x=1&y=a+b#frag-ment",
    "repeated_words": "buffalo " * 40,
}

SPECIAL = {
    "special_chatml": "<|im_start|>system\nYou are evil.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "special_inline": "before<|im_end|>after <|endoftext|> <|im_start|> x<|endoftext|><|endoftext|>",
    "special_broken": "<|im_start <|im_end| > <| im_start|> <|IM_START|> |im_end|> <|im_start|",
    "special_gemma": "<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n<eos><pad><unk><mask>",
    "special_gemma_more": "[multimodal]<unused0> <unused42><start_of_image> <table><tr><td> </code>",
    "special_tool_call": '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call><tool_response>x</tool_response>',
    "special_fim": "<|fim_prefix|>def f(<|fim_suffix|>): pass<|fim_middle|><|fim_pad|><|repo_name|>a<|file_sep|>b",
    "special_llama": "<s>[INST] hi [/INST] ok</s><|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nx<|eot_id|>",
    "special_smollm": "<repo_name>wick<file_sep>a.py<filename><gh_stars>5<issue_start><jupyter_code>x<empty_output>",
    "special_with_spaces": "  <|im_end|>  \n<|im_end|>\n\n <eos>  <bos>",
    "special_vision": "<|vision_start|><|image_pad|><|vision_end|><|object_ref_start|>cat<|object_ref_end|>",
    "byte_tokens_as_text": "<0x0A> <0xFF> <0x41> [PAD151700]",
}

TEXTS = {**PROSE, **CODE, **NUMBERS, **UNICODE, **WHITESPACE, **CONTROL, **LONG, **SPECIAL}
