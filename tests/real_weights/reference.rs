//! A model held against what transformers computed with the same weights in float32 (tests/golden/logits).
use serde_json::Value;

use crate::harness::{Engine, Output, request};
use crate::models::golden;

/// One prompt with the reference's greedy continuation.
struct Case {
    name: String,
    text: String,
    prompt: Vec<u32>,
    /// Log-probabilities of the prompt's tokens from the second on.
    prompt_logprobs: Vec<f64>,
    ids: Vec<u32>,
    logprobs: Vec<f64>,
    /// The first place where the runner-up is so close that rounding may decide; all of the continuation if there is none.
    near_tie: usize,
}

/// Everything the repository holds of a model's reference.
pub struct Reference {
    alias: String,
    cases: Vec<Case>,
}

/// A model's distance from its reference. Differences are of natural log-probabilities, absolute.
#[derive(Debug)]
pub struct Distance {
    pub prompts: usize,
    /// Tokens of the continuations.
    pub tokens: usize,
    pub mean: f64,
    pub max: f64,
    /// Over the tokens of the prompts.
    pub prompt_mean: f64,
    /// Continuations that leave the reference before its first near-tie: prompt, place, reference's token, ours.
    pub early: Vec<(String, usize, u32, u32)>,
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| u32::try_from(id.as_u64().unwrap()).unwrap()).collect()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

impl Reference {
    /// Of the prompts only `names`, unless there are none or WICK_GOLDEN_ALL=1 asks for every prompt.
    pub fn read(alias: &str, names: &[&str]) -> Self {
        let file = golden(&format!("logits/{alias}.json"));
        let near = file["near_tie"].as_f64().unwrap();
        assert!((near - 0.05).abs() < 1e-9, "the bound of near-ties");
        let mut cases: Vec<Case> =
            file["cases"].as_array().unwrap().iter().map(|case| Case::read(case, near)).collect();
        assert!(cases.len() >= 20, "{alias}: only {} prompts", cases.len());
        let all = std::env::var("WICK_GOLDEN_ALL").is_ok_and(|v| v == "1");
        if !all && !names.is_empty() {
            cases.retain(|case| names.contains(&case.name.as_str()));
            assert_eq!(cases.len(), names.len(), "{alias}: a prompt of the subset is missing");
        }
        Self { alias: alias.to_owned(), cases }
    }

    /// `encode` makes the same ids of every prompt's text.
    pub fn assert_ids_equal(&self, encode: impl Fn(&str) -> Vec<u32>) {
        for case in &self.cases {
            assert_eq!(encode(&case.text), case.prompt, "{}: ids of prompt `{}`", self.alias, case.name);
        }
    }

    /// llama.cpp's mean difference from the same reference, on the same file and over these prompts.
    pub fn llama_cpp(&self) -> f64 {
        let file = golden("logits/llama_cpp.json");
        let model = file["results"].as_array().unwrap().iter().find(|model| model["model"] == self.alias.as_str());
        let theirs = model.unwrap()["cases"].as_array().unwrap();
        let mean =
            |case: &Case| theirs.iter().find(|c| c["name"] == case.name.as_str()).unwrap()["mean"].as_f64().unwrap();
        // Every continuation has the same length, so the mean of means is the mean.
        self.cases.iter().map(mean).sum::<f64>() / self.cases.len() as f64
    }

    /// Runs every prompt twice: once with the reference's continuation given, and once to continue it.
    pub fn distance(&self, engine: &Engine) -> Distance {
        let greedy = engine.run(self.cases.iter().map(|case| request(&case.prompt, case.ids.len(), 0)).collect());
        let given = self.cases.iter().map(|case| {
            let mut all = request(&[&case.prompt[..], &case.ids[..]].concat(), 1, 0);
            all.prompt_logprobs = Some(0);
            all
        });
        let forced = engine.run(given.collect());
        let (mut own, mut prompts, mut early) = (Vec::new(), Vec::new(), Vec::new());
        for ((case, forced), greedy) in self.cases.iter().zip(&forced).zip(&greedy) {
            let (before, after) = case.differences(forced);
            prompts.extend(before);
            own.extend(after);
            if let Some(at) = (0..case.near_tie).find(|&at| greedy.ids[at] != case.ids[at]) {
                early.push((case.name.clone(), at, case.ids[at], greedy.ids[at]));
            }
        }
        let mean = |v: &[f64]| v.iter().sum::<f64>() / v.len().max(1) as f64;
        Distance {
            prompts: self.cases.len(),
            tokens: own.len(),
            mean: mean(&own),
            max: own.iter().copied().fold(0.0, f64::max),
            prompt_mean: mean(&prompts),
            early,
        }
    }
}

impl Case {
    fn read(case: &Value, near: f64) -> Self {
        let logprobs = numbers(&case["logprobs"]);
        let runners_up: Vec<f64> =
            case["runner_up"].as_array().unwrap().iter().map(|pair| pair[1].as_f64().unwrap()).collect();
        let near_tie = logprobs.iter().zip(&runners_up).position(|(best, next)| best - next < near);
        let name = case["name"].as_str().unwrap().to_owned();
        let case = Self {
            text: case["text"].as_str().unwrap().to_owned(),
            prompt: ids(&case["prompt_ids"]),
            prompt_logprobs: numbers(&case["prompt_logprobs"]),
            ids: ids(&case["ids"]),
            near_tie: near_tie.unwrap_or(logprobs.len()),
            logprobs,
            name,
        };
        assert_eq!((case.ids.len(), case.logprobs.len(), runners_up.len()), (48, 48, 48), "{}", case.name);
        assert_eq!(case.prompt_logprobs.len() + 1, case.prompt.len(), "{}", case.name);
        case
    }

    /// Of the prompt's tokens, and of the continuation's.
    fn differences(&self, forced: &Output) -> (Vec<f64>, Vec<f64>) {
        assert_eq!(forced.prompt.len(), self.prompt.len() + self.ids.len() - 1, "{}", self.name);
        let expected = self.prompt_logprobs.iter().chain(&self.logprobs);
        let mut all: Vec<f64> =
            forced.prompt.iter().zip(expected).map(|(a, b)| (f64::from(a.logprob) - b).abs()).collect();
        assert!(all.iter().all(|difference| difference.is_finite()), "{}: {all:?}", self.name);
        let after = all.split_off(self.prompt_logprobs.len());
        (all, after)
    }
}

impl Distance {
    /// One line of a table.
    pub fn print(&self, what: &str) {
        println!(
            "{what:<32} {:>3} prompts {:>5} tokens  mean {:.6}  max {:.6}  prompt mean {:.6}  greedy equal {}/{}",
            self.prompts,
            self.tokens,
            self.mean,
            self.max,
            self.prompt_mean,
            self.prompts - self.early.len(),
            self.prompts
        );
    }

    pub fn assert_mean_within(&self, what: &str, mean: f64) {
        self.print(what);
        println!("{what:<32} {mean:.6} allowed");
        assert!(self.mean <= mean, "{what}: mean difference {} is above {mean}", self.mean);
    }

    /// Also that greedy continuations are the reference's up to near ties.
    pub fn assert_within(&self, what: &str, mean: f64) {
        self.assert_mean_within(what, mean);
        assert!(self.early.is_empty(), "{what}: greedy continuations leave the reference early: {:?}", self.early);
    }
}
