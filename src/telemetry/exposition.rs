//! prometheus-client writes OpenMetrics; scrapers of the `vllm:` names parse the older text format 0.0.4, in which a
//! counter's declaration carries the `_total` of its samples and there is no end marker.

/// OpenMetrics text → Prometheus text format 0.0.4.
pub(super) fn to_classic(open_metrics: &str) -> String {
    let mut out = String::with_capacity(open_metrics.len());
    let mut lines = open_metrics.lines().peekable();
    while let Some(line) = lines.next() {
        if line == "# EOF" || line.starts_with("# UNIT ") {
            continue;
        }
        // HELP comes right before TYPE, which says whether the family is a counter.
        let is_counter = match line.strip_prefix("# HELP ") {
            Some(_) => lines.peek().is_some_and(|next| next.starts_with("# TYPE ") && next.ends_with(" counter")),
            None => line.starts_with("# TYPE ") && line.ends_with(" counter"),
        };
        if is_counter && let Some((keyword, rest)) = line.split_at_checked("# HELP ".len()) {
            let (name, rest) = rest.split_once(' ').unwrap_or((rest, ""));
            out.extend([keyword, name, "_total ", rest, "\n"]);
        } else {
            out.push_str(line);
            out.push('\n');
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::to_classic;

    #[test]
    fn counters_are_declared_with_their_suffix() {
        let open =
            "# HELP a:b Things.\n# TYPE a:b counter\na:b_total{x=\"y\"} 3\n# HELP g G.\n# TYPE g gauge\ng 1\n# EOF\n";
        let classic = "# HELP a:b_total Things.\n# TYPE a:b_total counter\na:b_total{x=\"y\"} 3\n# HELP g G.\n# TYPE g gauge\ng 1\n";
        assert_eq!(to_classic(open), classic);
    }
}
