"""Tests of the parts that measure nothing: counting a GGUF file, prompts, figures, the table. They need no peer."""
import http.server
import io
import struct
import threading
import time
import unittest

import gguf
import load
import table


def text(value):
    return struct.pack("<Q", len(value)) + value.encode()


def gguf_file(tensors):
    """A GGUF header with one key of each kind of value, and this tensor table."""
    keys = [text("a") + struct.pack("<IQ", 8, 2) + b"xy", text("b") + struct.pack("<II", 4, 7)]
    keys.append(text("c") + struct.pack("<IIQ", 9, 8, 2) + text("one") + text("two"))
    keys.append(text("d") + struct.pack("<IIQ", 9, 5, 3) + bytes(12))
    out = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys)) + b"".join(keys)
    for name, shape, kind in tensors:
        out += text(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape)
        out += struct.pack("<IQ", kind, 0)
    return io.BytesIO(out)


class Counting(unittest.TestCase):
    LAYER = [("blk.0.ffn_up.weight", (64, 128), 3), ("blk.0.attn_norm.weight", (64,), 0)]

    def test_a_tied_embedding_is_the_output(self):
        work = gguf.work(gguf.tensors(gguf_file([("token_embd.weight", (64, 1000), 8), *self.LAYER])))
        layer, output = 64 * 128, 64 * 1000
        self.assertEqual(work, gguf.Work(layer // 32 * 20 + output // 32 * 34, layer + output, layer))

    def test_an_embedding_beside_an_output_is_not_read(self):
        rest = [("output.weight", (64, 1000), 14), *self.LAYER]
        work = gguf.work(gguf.tensors(gguf_file([("token_embd.weight", (64, 1000), 6), *rest])))
        self.assertEqual(work.bytes_per_step, 64 * 128 // 32 * 20 + 64000 // 256 * 210)
        self.assertEqual(work.macs_per_decoded - work.macs_per_prompt, 64000)

    def test_other_files_are_refused(self):
        for data in (b"ZIP!", b"GGUF" + struct.pack("<I", 1), gguf_file(self.LAYER).getvalue()[:-5]):
            with self.assertRaises(ValueError):
                gguf.tensors(io.BytesIO(data))


class Loading(unittest.TestCase):
    def test_prompts_differ_but_for_what_they_share(self):
        a, b = load.prompts("seed", 2, 40, shared=30)
        self.assertEqual(a.split()[:30], b.split()[:30])
        self.assertNotEqual(a.split()[30:], b.split()[30:])
        self.assertEqual(len(a.split()), 40)
        self.assertEqual(load.prompts("seed", 2, 40, shared=30), [a, b])
        self.assertNotEqual(load.prompts("other", 1, 40, shared=30)[0], a)

    def test_figures(self):
        answers = [load.Answer(0.0, [1.0, 1.1, 1.3], 9, 3), load.Answer(1.0, [3.0, 3.1, 3.2], 9, 3)]
        found = load.figures(answers, 4.0, 3)
        self.assertEqual((found["tokens_per_second"], found["ttft_p50"], found["prompt_tokens"]), (1.5, 2.0, 9))
        self.assertAlmostEqual(found["itl_p50"], 0.1)
        self.assertAlmostEqual(found["itl_p95"], 0.2)

    def test_an_answer_of_another_length_voids_the_cell(self):
        with self.assertRaises(RuntimeError):
            load.figures([load.Answer(0.0, [1.0], 9, 2)], 1.0, 3)

    def test_a_loop_keeps_as_many_requests_as_clients(self):
        running, most, lock = 0, 0, threading.Lock()

        def send(_):
            nonlocal running, most
            with lock:
                running += 1
                most = max(most, running)
            time.sleep(0.01)
            with lock:
                running -= 1

        answers, _ = load.closed_loop(send, range(12), 3, 60)
        self.assertEqual((len(answers), most), (12, 3))

    def test_a_loop_ends_with_its_first_error_or_its_time(self):
        with self.assertRaises(ZeroDivisionError):
            load.closed_loop(lambda n: 1 / n, [1, 0, 1], 2, 60)
        with self.assertRaises(TimeoutError):
            load.closed_loop(time.sleep, [5], 1, 0.05)


class Events(http.server.BaseHTTPRequestHandler):
    """A server of two tokens, an empty closing event and usage."""

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.end_headers()
        choices = ['{"text": "a", "finish_reason": null}', '{"text": "b", "finish_reason": null}']
        for choice in [*choices, '{"text": "", "finish_reason": "length"}']:
            self.wfile.write(f'data: {{"choices": [{choice}]}}\n\n'.encode())
        usage = '{"prompt_tokens": 5, "completion_tokens": 2}'
        self.wfile.write(f'data: {{"choices": [], "usage": {usage}}}\n\ndata: [DONE]\n\n'.encode())

    def log_message(self, *_):
        pass


class OverHttp(unittest.TestCase):
    def test_a_stream_is_read(self):
        with http.server.HTTPServer(("127.0.0.1", 0), Events) as server:
            threading.Thread(target=server.handle_request, daemon=True).start()
            answer = load.over_http(server.server_port, "m", 2)("prompt")
        self.assertEqual((len(answer.times), answer.prompt_tokens, answer.output_tokens), (2, 5, 2))


class Tables(unittest.TestCase):
    def lines(self, records, cells=("engine",)):
        work = {"bytes_per_step": 10**9, "macs_per_decoded": 10**9, "macs_per_prompt": 10**9}
        roofs = {"gb_per_second": 20.0, "gmac_per_second": 1000.0}
        return table.of_model(records, cells, ["wick", "peer"], work, roofs, {"prefill": 512})

    def record(self, peer, cell="engine", **figures):
        return {"cell": cell, "peer": peer, "figures": figures}

    def test_medians_ratios_and_shares(self):
        mine = [self.record("wick", prefill=p, **{"decode-1": 10.0}) for p in (300.0, 500.0, 400.0)]
        row = self.lines([*mine, self.record("peer", prefill=200.0, **{"decode-1": 20.0})])
        self.assertEqual(row[2], "| prefill 512 tokens, tok/s | 400 (300–500) | 40% int8 | 200 | 2.00× | 1/3 |")
        decode = "| decode, 1 sequence, tok/s | 10.0 (10.0–10.0) | 50% bandwidth | 20.0 | 0.50× | 1/3 |"
        self.assertEqual(row[3], decode)

    def test_less_time_is_ahead(self):
        cells = [self.record("wick", "start", seconds=0.2), self.record("peer", "start", seconds=0.5)]
        self.assertIn("| 0.20 |  | 0.50 | 2.50× | 1 |", self.lines(cells, ["start"])[2])

    def test_what_is_missing_says_why(self):
        why = {"cell": "engine", "peer": "peer", "error": "cannot load Q5_0"}
        lines = self.lines([self.record("wick", prefill=100.0), why])
        self.assertIn("| 100 | 10% int8 | – (1) |  | 1 |", lines[2])
        self.assertEqual(lines[-1], "(1) cannot load Q5_0")


if __name__ == "__main__":
    unittest.main()
