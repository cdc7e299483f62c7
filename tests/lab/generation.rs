//! The generations of HAProxy, by the status.

use serde_json::Value;

#[derive(Clone, Debug)]
pub struct Generation {
    pub id: u64,
    pub pid: u32,
    pub state: String,
}

pub fn generations(status: &Value) -> Vec<Generation> {
    let all = status["generations"].as_array().expect("generations is a list");
    let one = |value: &Value| Generation {
        id: value["id"].as_u64().expect("id is a number"),
        pid: u32::try_from(value["pid"].as_u64().expect("pid is a number")).unwrap(),
        state: value["state"].as_str().expect("state is a word").to_owned(),
    };
    all.iter().map(one).collect()
}
