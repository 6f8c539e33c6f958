//! Responses that are kept: conversations that go on by an id, items by reference, retrieval, and what is not there.
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use insta::assert_snapshot;
use serde_json::{Value, json};
use wick::api::auth::{Scope, generate_key};
use wick::api::{KeyStore, ServerOptions};

use super::responses::{CALLS, COUNT, RESPONSES, events, request, tools};
use super::streamed;
use super::support::{Server, Setup};

fn keeping(responses_max: usize) -> ServerOptions {
    ServerOptions { responses_max, ..ServerOptions::default() }
}

async fn says(script: &'static str, options: ServerOptions) -> Server {
    let template = Some("qwen3.jinja");
    Server::start(Setup { script: Some(script), template, context_max: 8192, options, ..Setup::default() }).await
}

/// Not redacted: ids are what this is about.
async fn ok(server: &Server, body: Value) -> Value {
    let (status, body) = server.ask(RESPONSES, body).await;
    assert_eq!(status, 200, "{body}");
    body
}

fn at(response: &Value) -> String {
    format!("{RESPONSES}/{}", response["id"].as_str().unwrap())
}

async fn status(server: &Server, response: &Value) -> u16 {
    server.call("GET", &at(response), None).await.0
}

/// Status, `param` and `code`.
fn refusal((status, body): (u16, Value)) -> (u16, String, String) {
    let of = |name: &str| body["error"][name].as_str().unwrap_or("none").to_owned();
    (status, of("param"), of("code"))
}

/// The items of the input, first to last.
async fn inputs(server: &Server, response: &Value) -> Vec<Value> {
    let (status, body) = server.call("GET", &format!("{}/input_items?order=asc&limit=100", at(response)), None).await;
    assert_eq!(status, 200, "{body}");
    body["data"].as_array().unwrap().clone()
}

fn without_id(item: &Value) -> Value {
    let mut item = item.clone();
    item.as_object_mut().unwrap().remove("id");
    item
}

#[tokio::test]
async fn a_conversation_goes_on_as_if_it_had_been_sent() {
    let server = says("So it is.", keeping(10)).await;
    let first = ok(&server, request(json!({"instructions": "First.", "input": "a".repeat(300)}))).await;
    assert_eq!((&first["store"], &first["previous_response_id"]), (&json!(true), &Value::Null));
    assert_eq!(server.call("GET", &at(&first), None).await, (200, first.clone()));
    // Instructions are a request's own.
    let go_on = json!({"previous_response_id": first["id"], "instructions": "Second.", "input": "and?"});
    let second = ok(&server, request(go_on.clone())).await;
    assert_eq!((&second["previous_response_id"], &second["instructions"]), (&first["id"], &json!("Second.")));
    let whole = |instructions: &str, items: &[Value]| {
        request(json!({"instructions": instructions, "input": items, "store": false}))
    };
    let user = |text: &str| json!({"role": "user", "content": text});
    let mut items = vec![user(&"a".repeat(300)), first["output"][0].clone(), user("and?")];
    let same = ok(&server, whole("Second.", &items)).await;
    assert_eq!((&same["store"], status(&server, &same).await), (&json!(false), 404));
    assert_eq!(second["usage"]["input_tokens"], same["usage"]["input_tokens"]);
    assert_eq!(second["output"][0]["content"], same["output"][0]["content"]);
    let mut counted = request(go_on);
    counted.as_object_mut().unwrap().remove("temperature");
    let (_, counted) = server.ask(COUNT, counted).await;
    assert_eq!(counted["input_tokens"], same["usage"]["input_tokens"]);

    // With the same instructions all of the second prompt but its end is in the cache; streams are kept before they end.
    let go_on =
        json!({"previous_response_id": second["id"], "instructions": "Second.", "input": "more", "stream": true});
    let stream = events(&streamed(&server, RESPONSES, request(go_on)).await);
    let third = stream.last().unwrap()["response"].clone();
    assert_eq!(stream[0]["response"]["previous_response_id"], second["id"]);
    assert_eq!(server.call("GET", &at(&third), None).await, (200, third.clone()));
    items.extend([second["output"][0].clone(), user("more")]);
    let same = ok(&server, whole("Second.", &items)).await;
    assert_eq!(third["usage"]["input_tokens"], same["usage"]["input_tokens"]);
    let cached = third["usage"]["input_tokens_details"]["cached_tokens"].as_u64().unwrap();
    assert!(cached + 48 > second["usage"]["input_tokens"].as_u64().unwrap(), "{third}");

    // The items are those of the whole conversation, and the first's have kept their ids.
    let listed = inputs(&server, &third).await;
    let roles: Vec<&str> = listed.iter().map(|item| item["role"].as_str().unwrap()).collect();
    assert_eq!(roles, ["user", "assistant", "user", "assistant", "user"]);
    assert_eq!((&listed[1], &listed[3]), (&first["output"][0], &second["output"][0]));
    assert_eq!(listed[0], inputs(&server, &first).await[0]);
    let text = json!([{"type": "input_text", "text": "more"}]);
    let said = json!({"type": "message", "role": "user", "content": text, "status": "completed"});
    let mut last = listed[4].clone();
    let id = last.as_object_mut().unwrap().remove("id").unwrap();
    assert!(id.as_str().unwrap().starts_with("msg_"));
    assert_eq!(last, said);
}

#[tokio::test]
async fn results_and_references_find_what_a_response_had() {
    let server = says(CALLS, keeping(10)).await;
    let ask = |extra: Value| {
        let mut body = request(json!({ "tools": tools() }));
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        body
    };
    let first = ok(&server, ask(json!({}))).await;
    let output = first["output"].as_array().unwrap();
    let kinds: Vec<&str> = output.iter().map(|item| item["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["reasoning", "message", "function_call", "custom_tool_call"]);
    let result = |item: &Value| json!({"type": format!("{}_output", item["type"].as_str().unwrap()), "call_id": item["call_id"], "output": "17"});
    let results = [result(&output[2]), result(&output[3])];
    let user = json!({"role": "user", "content": "Hello"});
    let with = |middle: Vec<Value>| [vec![user.clone()], middle, results.to_vec()].concat();
    let whole = ok(&server, ask(json!({"input": with(output.clone()), "store": false}))).await;
    let goes_on = ok(&server, ask(json!({"input": results, "previous_response_id": first["id"]}))).await;
    let reference = |item: &Value| json!({"type": "item_reference", "id": item["id"]});
    let named = ok(&server, ask(json!({"input": with(output.iter().map(reference).collect())}))).await;
    // Its type may be left out.
    let bare = output.iter().map(|item| json!({"id": item["id"]})).collect();
    let bare = ok(&server, ask(json!({"input": with(bare)}))).await;
    for other in [&goes_on, &named, &bare] {
        assert_eq!(other["usage"]["input_tokens"], whole["usage"]["input_tokens"]);
        let listed = inputs(&server, other).await;
        assert_eq!(listed[1..5], output[..]);
        let mut listed_results: Vec<Value> = listed[5..].iter().map(without_id).collect();
        assert_eq!(listed_results[0].as_object_mut().unwrap().remove("status"), Some(json!("completed")));
        assert_eq!(listed_results, results);
    }
    // A whole item that comes back as it was is the one that is kept; with another text it is another.
    let mut changed = output[1].clone();
    changed["content"][0]["text"] = "Forged.".into();
    let back = ok(
        &server,
        ask(json!({"input": with(vec![output[1].clone(), changed, output[2].clone(), output[3].clone()])})),
    )
    .await;
    let listed = inputs(&server, &back).await;
    assert_eq!((&listed[1], &listed[3]["id"]), (&output[1], &output[2]["id"]));
    assert_eq!(listed[2]["content"][0]["text"], "Forged.");
    assert_ne!(listed[2]["id"], output[1]["id"]);
    // Of an item that comes twice the second is another, so that pages end.
    let twice =
        ok(&server, ask(json!({"input": [user, reference(&output[1]), user, reference(&output[1]), user]}))).await;
    let mut seen = Vec::new();
    let mut after = String::new();
    loop {
        let (_, page) = server.call("GET", &format!("{}/input_items?limit=2{after}", at(&twice)), None).await;
        let data = page["data"].as_array().unwrap();
        assert_eq!((&page["first_id"], &page["last_id"]), (&data[0]["id"], &data.last().unwrap()["id"]));
        seen.extend(data.iter().map(|item| item["id"].as_str().unwrap().to_owned()));
        if page["has_more"] == false {
            break;
        }
        after = format!("&after={}", page["last_id"].as_str().unwrap());
    }
    let mut forward: Vec<String> =
        inputs(&server, &twice).await.iter().map(|item| item["id"].as_str().unwrap().to_owned()).collect();
    forward.reverse();
    assert_eq!((seen.len(), seen), (5, forward));
}

/// One line per refused request: what it was → status, `param`, `code`, message.
#[tokio::test]
async fn what_is_not_there_is_said() {
    let (server, without) = (says("x", keeping(4)).await, says("x", ServerOptions::default()).await);
    let kept = ok(&server, request(json!({}))).await;
    let mut lines = Vec::new();
    let mut note = |what: String, (status, body): (u16, Value)| {
        let [id, item] = [&kept["id"], &kept["output"][0]["id"]].map(|id| id.as_str().unwrap());
        let body: Value = serde_json::from_str(&body.to_string().replace(item, "[item]")).unwrap();
        let error = &body["error"];
        let what: String = what.replace(id, "[kept]").replace(item, "[item]").chars().take(120).collect();
        lines.push(format!("{what}\n  {status} {} {} {}", error["param"], error["code"], error["message"]));
    };
    for case in [
        json!({"previous_response_id": "resp_1"}),
        json!({"previous_response_id": "é".repeat(100)}),
        json!({"previous_response_id": ""}),
        json!({"previous_response_id": 1}),
        json!({"previous_response_id": kept["id"], "conversation": "conv_1"}),
        json!({"previous_response_id": kept["id"], "input": []}),
        json!({"previous_response_id": kept["id"], "input": null}),
        json!({"previous_response_id": kept["id"], "input": [{"type": "function_call_output", "call_id": "call_1", "output": "x"}]}),
        json!({"previous_response_id": kept["output"][0]["id"]}),
        json!({"input": [{"type": "item_reference", "id": "msg_1"}]}),
        json!({"input": [{"type": "item_reference", "id": "kept"}]}),
        json!({"input": [{"type": "item_reference"}]}),
        json!({"input": [{"type": "item_reference", "id": 1}]}),
        json!({"input": [{"type": "item_reference", "id": kept["output"][0]["id"], "more": 1}]}),
        json!({"input": [{"id": "msg_1"}]}),
        json!({"store": 1}),
        json!({"background": true}),
    ] {
        note(case.to_string(), server.ask(RESPONSES, request(case)).await);
    }
    for path in [
        "/v1/responses/resp_1".to_owned(),
        format!("/v1/responses/{}", "a".repeat(100)),
        "/v1/responses/%FF".to_owned(),
        format!("{}?stream=true", at(&kept)),
        format!("{}?stream=yes", at(&kept)),
        format!("{}?starting_after=1", at(&kept)),
        format!("{}?include[]=x", at(&kept)),
        "/v1/responses/resp_1/input_items".to_owned(),
        format!("{}/input_items?limit=0", at(&kept)),
        format!("{}/input_items?limit=x", at(&kept)),
        format!("{}/input_items?limit=1&limit=2", at(&kept)),
        format!("{}/input_items?order=up", at(&kept)),
        format!("{}/input_items?after=msg_1", at(&kept)),
        format!("{}/input_items?%FF=1", at(&kept)),
    ] {
        note(format!("GET {path}"), server.call("GET", &path, None).await);
    }
    note("DELETE".to_owned(), server.call("DELETE", "/v1/responses/resp_1", None).await);
    for method in ["GET", "DELETE"] {
        note(format!("not kept: {method}"), without.call(method, "/v1/responses/resp_1", None).await);
    }
    for case in [
        json!({"store": true}),
        json!({"previous_response_id": "resp_1"}),
        json!({"input": [{"type": "item_reference", "id": "x"}]}),
    ] {
        note(format!("not kept: {case}"), without.ask(RESPONSES, request(case)).await);
    }
    assert_snapshot!(lines.join("\n"));
    let answer = ok(&without, request(json!({}))).await;
    assert_eq!((&answer["store"], &answer["previous_response_id"]), (&json!(false), &Value::Null));
    for path in [
        format!("{}?stream=false&include[]=reasoning.encrypted_content", at(&kept)),
        format!("{}/input_items?include=web_search_call.results", at(&kept)),
    ] {
        assert_eq!(server.call("GET", &path, None).await.0, 200);
    }
}

#[tokio::test]
async fn only_whole_answers_are_kept() {
    let server = says("Plain text", keeping(10)).await;
    let cut = ok(&server, request(json!({"max_output_tokens": 3}))).await;
    assert_eq!((&cut["status"], status(&server, &cut).await), (&json!("incomplete"), 200));
    let after = ok(&server, request(json!({"previous_response_id": cut["id"], "input": "go on"}))).await;
    assert_eq!(inputs(&server, &after).await[1], cut["output"][0]);

    let options = keeping(10);
    let failing = Server::start(Setup { fail_on_token: Some(u32::from(b'w')), options, ..Setup::default() }).await;
    let events = events(&streamed(&failing, RESPONSES, request(json!({"stream": true}))).await);
    let failed = &events.last().unwrap()["response"];
    assert_eq!((&failed["status"], &failed["store"]), (&json!("failed"), &json!(true)));
    assert_eq!(status(&failing, failed).await, 404);
}

/// A server that has kept a response, and stands in the first token of one that goes on from it: the one's body, the beginning of the other's, and
/// the rest of its stream.
async fn interrupted() -> (Server, Value, Value, impl Stream<Item = reqwest::Result<Bytes>>) {
    let setup = Setup { gated: true, script: Some("Text"), options: keeping(10), ..Setup::default() };
    let server = Server::start(setup).await;
    server.gate.allow(2);
    let first = ok(&server, request(json!({"max_output_tokens": 2}))).await;
    let body = request(json!({"stream": true, "previous_response_id": first["id"], "input": "more"}));
    let mut stream = server.post(RESPONSES, &body).send().await.unwrap().bytes_stream();
    let head = String::from_utf8(stream.next().await.unwrap().unwrap().to_vec()).unwrap();
    let created: Value = serde_json::from_str(head.lines().nth(1).unwrap().strip_prefix("data: ").unwrap()).unwrap();
    (server, first, created["response"].clone(), stream)
}

#[tokio::test]
async fn an_answer_whose_client_left_is_not_kept() {
    let (server, first, left, stream) = interrupted().await;
    drop(stream);
    server.state.in_flight().wait_for(|running| *running == 0).await.unwrap();
    server.gate.open();
    assert_eq!((status(&server, &left).await, status(&server, &first).await), (404, 200));
}

#[tokio::test]
async fn a_conversation_outlives_what_it_went_on_from() {
    let (server, first, stays, stream) = interrupted().await;
    assert_eq!(
        server.call("DELETE", &at(&first), None).await.1,
        json!({"id": first["id"], "object": "response", "deleted": true})
    );
    server.gate.open();
    let rest: Vec<_> = stream.collect().await;
    assert!(!rest.is_empty() && rest.iter().all(Result::is_ok));
    assert_eq!(status(&server, &first).await, 404);
    assert_eq!(inputs(&server, &stays).await[1], first["output"][0]);
    let again = server.ask(RESPONSES, request(json!({"previous_response_id": first["id"], "input": "more"}))).await;
    assert_eq!(refusal(again), (400, "previous_response_id".into(), "previous_response_not_found".into()));
}

#[tokio::test]
async fn tenants_have_their_own() {
    let keys = ["a", "b"].map(|name| generate_key(name, &[Scope::Infer]).unwrap());
    let file: String = keys.iter().map(|key| key.toml.clone()).collect();
    let auth = Some(KeyStore::parse(&file, std::path::Path::new("keys.toml")).unwrap());
    let server = says("x", ServerOptions { auth, ..keeping(4) }).await;
    let [a, b] = keys.each_ref().map(|key| key.plaintext.as_str());
    let ask = async |key: &str, body: Value| {
        server.answered("post", RESPONSES, server.post(RESPONSES, &request(body)).bearer_auth(key)).await
    };
    let (_, first) = ask(a, json!({})).await;
    assert_eq!(server.call("GET", &at(&first), Some(b)).await.0, 404);
    assert_eq!(server.call("GET", &format!("{}/input_items", at(&first)), Some(b)).await.0, 404);
    assert_eq!(server.call("DELETE", &at(&first), Some(b)).await.0, 404);
    let previous = ask(b, json!({"previous_response_id": first["id"]})).await;
    assert_eq!(refusal(previous), (400, "previous_response_id".into(), "previous_response_not_found".into()));
    let reference = json!({"input": [{"type": "item_reference", "id": first["output"][0]["id"]}]});
    assert_eq!(refusal(ask(b, reference.clone()).await), (404, "input[0].id".into(), "item_not_found".into()));
    assert_eq!(ask(a, reference).await.0, 200);
    for _ in 0..10 {
        assert_eq!(ask(b, json!({})).await.0, 200);
    }
    assert_eq!(server.call("GET", &at(&first), Some(a)).await.0, 200);
    assert_eq!(server.call("GET", &at(&first), None).await.0, 401);
    let metrics = server.state.metrics_text();
    for line in ["wick_kept_responses{tenant=\"a\"} 2", "wick_kept_responses{tenant=\"b\"} 2"] {
        assert!(metrics.lines().any(|found| found == line), "{metrics}");
    }
    assert_eq!(server.call("DELETE", &at(&first), Some(a)).await.0, 200);
    assert!(server.state.metrics_text().contains("wick_kept_responses{tenant=\"a\"} 1\n"));
}

#[tokio::test]
async fn what_is_too_large_is_served_and_not_kept() {
    let options = ServerOptions { responses_bytes_max: 20_000, body_bytes_max: 30_000, ..keeping(10) };
    let server = says("x", options).await;
    let auto = |extra: Value| {
        let mut body = request(json!({"truncation": "auto"}));
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        body
    };
    let text = |bytes: usize| json!({"role": "user", "content": "a".repeat(bytes)});
    let small = ok(&server, auto(json!({"input": [text(7000)]}))).await;
    let long: Vec<Value> = (0..4).map(|_| text(6000)).collect();
    let large = ok(&server, auto(json!({ "input": long }))).await;
    assert_eq!((&large["store"], status(&server, &large).await), (&json!(false), 404));
    let told = events(&streamed(&server, RESPONSES, auto(json!({"input": long, "stream": true}))).await);
    assert_eq!(told.last().unwrap()["response"]["store"], false);
    // It has pushed nothing out.
    assert_eq!(status(&server, &small).await, 200);
    let metrics = server.state.metrics_text();
    let bytes = metrics.lines().find_map(|line| line.strip_prefix("wick_kept_response_bytes{tenant=\"anonymous\"} "));
    assert!((7_000..20_000).contains(&bytes.unwrap().parse::<usize>().unwrap()), "{metrics}");
    // With what the server has of it, a conversation is as long as a body may be.
    let more = auto(json!({"previous_response_id": small["id"], "input": [text(25_000)]}));
    let (status, body) = server.ask(RESPONSES, more).await;
    assert_eq!((status, &body["error"]["code"]), (413, &json!("request_too_large")), "{body}");
    let item = inputs(&server, &small).await[0]["id"].clone();
    let often = vec![json!({"type": "item_reference", "id": item}); 100];
    assert_eq!(server.ask(RESPONSES, auto(json!({ "input": often }))).await.0, 413);
    let twice = vec![json!({"type": "item_reference", "id": item}); 2];
    ok(&server, auto(json!({ "input": twice }))).await;
}

#[tokio::test]
async fn many_clients_at_once_have_their_own_conversations() {
    let server = Arc::new(says("Said.", keeping(40)).await);
    let talk = async |server: Arc<Server>, client: usize| {
        let mut known: Option<Value> = None;
        let (mut turns, mut lost) = (0, 0);
        for turn in 0..6 {
            let previous = known.as_ref().map(|response| response["id"].clone());
            let body = request(json!({"input": format!("{client}.{turn}"), "previous_response_id": previous}));
            let (status, answer) = server.ask(RESPONSES, body).await;
            if status == 400 {
                assert_eq!(answer["error"]["code"], "previous_response_not_found");
                (known, turns, lost) = (None, 0, lost + 1);
                continue;
            }
            assert_eq!(status, 200, "{answer}");
            turns += 1;
            let path = format!("{}/input_items?order=asc", at(&answer));
            let (status, listed) = server.call("GET", &path, None).await;
            if status == 200 {
                let data = listed["data"].as_array().unwrap();
                assert_eq!(data.len(), 2 * turns - 1);
                let mine = |item: &&Value| item["role"] == "user";
                let prefix = format!("{client}.");
                assert!(
                    data.iter()
                        .filter(mine)
                        .all(|item| item["content"][0]["text"].as_str().unwrap().starts_with(&prefix))
                );
            }
            if client.is_multiple_of(8) {
                server.call("DELETE", &at(known.as_ref().unwrap_or(&answer)), None).await;
            }
            known = Some(answer);
        }
        lost
    };
    let clients = (0..64).map(|client| tokio::spawn(talk(Arc::clone(&server), client)));
    let lost: Vec<usize> = futures_util::future::join_all(clients).await.into_iter().map(Result::unwrap).collect();
    assert!(lost.iter().sum::<usize>() > 0, "40 places are too few for 64 clients");
    let metrics = server.state.metrics_text();
    let held = metrics.lines().find_map(|line| line.strip_prefix("wick_kept_responses{tenant=\"anonymous\"} "));
    assert!((1..=40).contains(&held.unwrap().parse::<usize>().unwrap()), "{held:?}");
}

#[tokio::test]
async fn accounts_of_workers_ai_have_the_same() {
    let server = says("x", keeping(4)).await;
    let path = "/client/v4/accounts/any/ai/v1/responses";
    let (_, first) = server.ask(path, request(json!({}))).await;
    let at = format!("{path}/{}", first["id"].as_str().unwrap());
    let (status, second) =
        server.ask(path, request(json!({"input": "more", "previous_response_id": first["id"]}))).await;
    assert_eq!((status, &second["previous_response_id"], &second["store"]), (200, &first["id"], &json!(true)));
    assert_eq!(server.call("GET", &at, None).await, (200, first.clone()));
    let (_, listed) = server.call("GET", &format!("{at}/input_items"), None).await;
    assert_eq!(listed["data"][0]["content"][0]["text"], "Hello");
    assert_eq!(server.call("DELETE", &at, None).await.0, 200);
    let (status, gone) = server.call("GET", &at, None).await;
    assert_eq!((status, &gone["success"], &gone["error"]["code"]), (404, &json!(false), &json!("response_not_found")));
}
