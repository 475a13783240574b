//! What arrives makes exactly one job, and what a factory makes itself makes none.

use std::fs;
use std::time::Duration;

use serde_json::json;
use telecine_tests::up::{Up, pause, text};

use crate::spine::{jobs_of, path, write};

fn copier(up: &Up) -> String {
    up.local_store("shelf", &up.folder("shelf"));
    up.publish(
        "copy",
        "16MiB",
        &["--program", "/bin/cp", "--argument={input.source}", "--argument={output.copy}"],
    );
    copies(up, "copies")
}

/// A factory that copies each text of the shelf into a folder of its own name.
fn copies(up: &Up, name: &str) -> String {
    let factory = json!({
        "name": name, "service": "copy", "engine_version": "1.0.0",
        "composition": {
            "inputs": {"source": {"store": "shelf", "key": "{input.key}"}},
            "outputs": {"copy": {"store": "shelf", "key": format!("{name}/{{input.stem}}-copy.txt")}},
        },
        "watch": [{"store": "shelf", "prefix": if name == "copies" { "" } else { "in/" }, "suffixes": [".txt"]}],
    });
    write(up, "factory.json", &factory);
    text(&up.cli(&["factories", "create", "--document", &path(up, "factory.json")]), "/id")
}

fn succeeded(up: &Up, factory: &str, count: usize) {
    up.until(&format!("{count} jobs have succeeded"), |up| {
        let jobs = jobs_of(up, factory);
        jobs.len() >= count && jobs.iter().all(|job| job["state"] == "succeeded")
    });
}

#[test]
fn a_factory_never_triggers_on_its_own_outputs() {
    let mut up = Up::start(&[]);
    let factory = copier(&up);
    fs::write(up.folder("shelf").join("letter.txt"), "first").expect("written");
    succeeded(&up, &factory, 1);
    // A restart lists everything again, the copy too.
    up.kill();
    up.restart();
    pause(Duration::from_secs(4));
    assert_eq!(jobs_of(&up, &factory).len(), 1, "the copy made no job");
    // What a user puts over the copy is the user's.
    let copy = up.folder("shelf").join("copies/letter-copy.txt");
    fs::write(up.folder("shelf").join("elsewhere"), "the user's own").expect("written");
    fs::rename(up.folder("shelf").join("elsewhere"), &copy).expect("renamed over");
    succeeded(&up, &factory, 2);
}

#[test]
fn the_same_object_told_again_and_again_makes_one_job_and_a_changed_one_another() {
    let up = Up::start(&[]);
    let factory = copier(&up);
    let (name, away) = (up.folder("shelf").join("note.txt"), up.folder("shelf").join("note.away"));
    fs::write(&name, "one").expect("written");
    for _ in 0..100 {
        fs::rename(&name, &away).and_then(|()| fs::rename(&away, &name)).expect("renamed back");
    }
    succeeded(&up, &factory, 1);
    assert_eq!(jobs_of(&up, &factory).len(), 1);
    fs::write(&name, "another").expect("written again");
    succeeded(&up, &factory, 2);
    assert_eq!(
        fs::read_to_string(up.folder("shelf").join("copies/note-copy.txt")).expect("the copy"),
        "another"
    );
}

#[test]
fn a_factory_that_comes_later_sees_what_is_there_already_once() {
    let mut up = Up::start(&[]);
    let shelf = up.folder("shelf");
    fs::create_dir(shelf.join("in")).expect("made");
    fs::write(shelf.join("in/old.txt"), "old").expect("written");
    let first = copier(&up);
    succeeded(&up, &first, 1);
    let second = copies(&up, "later");
    succeeded(&up, &second, 1);
    up.cli(&["factories", "update", &second, "--enabled", "false"]);
    fs::write(shelf.join("in/meanwhile.txt"), "meanwhile").expect("written");
    // The first factory copies the second one's copy, too: it is another's output.
    succeeded(&up, &first, 3);
    up.cli(&["factories", "update", &second, "--enabled", "true"]);
    succeeded(&up, &second, 2);
    up.kill();
    up.restart();
    pause(Duration::from_secs(4));
    assert_eq!(jobs_of(&up, &second).len(), 2, "one job for each object, however often it is looked at");
}

#[test]
fn hostile_names_that_arrive_make_a_job_each() {
    let up = Up::start(&[]);
    let factory = copier(&up);
    let names = ["a b", "it's \"quoted\"", "new\nline", "100%2e%2e%2f", "-rf", "漢字 é", "..hidden", "*?[x]"];
    for name in names {
        fs::write(up.folder("shelf").join(format!("{name}.txt")), name).expect("written");
    }
    succeeded(&up, &factory, names.len());
    for name in names {
        let copy = up.folder("shelf").join(format!("copies/{name}-copy.txt"));
        assert_eq!(fs::read_to_string(&copy).expect("the copy"), name);
    }
    assert_eq!(jobs_of(&up, &factory).len(), names.len());
}
