use super::{fixture::full, *};

/// Checks that tags open and close in order, attributes are quoted, and text holds no stray `<`.
/// Style and script are opaque. Not an HTML parser: it accepts only what a careful writer writes.
fn well_formed(html: &str) -> Result<usize, String> {
    const VOID: [&str; 3] = ["meta", "!doctype", "input"];
    let (mut open, mut at, mut tags): (Vec<&str>, usize, usize) = (Vec::new(), 0, 0);
    while let Some(start) = html[at..].find('<').map(|i| at + i) {
        if html[at..start].contains('>') {
            return Err(format!("stray > before {}", &html[start..(start + 40).min(html.len())]));
        }
        let mut quoted = false;
        let end = html[start..]
            .char_indices()
            .find(|(_, c)| {
                quoted ^= *c == '"';
                *c == '>' && !quoted
            })
            .map(|(i, _)| start + i)
            .ok_or("a tag never ends")?;
        let tag = &html[start + 1..end];
        if tag.contains('<') {
            return Err(format!("< inside <{tag}>"));
        }
        at = end + 1;
        tags += 1;
        let name = tag.trim_start_matches('/').split([' ', '/']).next().unwrap_or("");
        if tag.starts_with('/') {
            if open.pop() != Some(name) {
                return Err(format!("</{name}> closes nothing, near byte {start}"));
            }
        } else if !tag.ends_with('/') && !VOID.contains(&name) {
            open.push(name);
            if name == "style" || name == "script" {
                at += html[at..].find(&format!("</{name}>")).ok_or("never closed")?;
            }
        }
    }
    if open.is_empty() { Ok(tags) } else { Err(format!("left open: {open:?}")) }
}

#[test]
fn the_checker_itself_can_fail() {
    assert!(well_formed("<p>a</p>").is_ok());
    for bad in ["<p>a", "<b><i>x</b></i>", "<p>1 < 2</p>", "<p>a > b</p>", "<p title=\"<\">x</p>"] {
        assert!(well_formed(bad).is_err(), "{bad}");
    }
}

#[test]
fn the_whole_page_is_well_formed() {
    let html = render(&full());
    assert!(well_formed(&html).unwrap() > 500);
    assert!(html.matches("<svg").count() >= 10);
    assert!(!html.contains("NaN") && !html.contains("inf%"));
}

#[test]
fn nothing_outside_is_referred_to() {
    let html = render(&full());
    for word in ["http://", "https://", "src=", "@import", "url(", "<link", "fetch("] {
        assert!(!html.contains(word), "{word}");
    }
    assert!(html.contains("default-src 'none'"));
}

#[test]
fn what_a_model_says_stays_text() {
    let evil = "</pre></script><script>alert(\"1\")</script><img onerror='x'>&amp;";
    let mut data = full();
    data.title = evil.into();
    data.command = evil.into();
    data.version = evil.into();
    data.when = evil.into();
    data.tasks[0].metric = evil.into();
    data.tasks[0].items = evil.into();
    data.fields[0].name = evil.into();
    data.changes[0].site = evil.into();
    data.changes[210].site = evil.into();
    data.artefacts[0].path = evil.into();
    data.data[0].path = evil.into();
    data.cuts[0].file = evil.into();
    if let (Some(model), Some(method), Some(general), Some(resources)) =
        (&mut data.model, &mut data.method, &mut data.general, &mut data.resources)
    {
        model.name = evil.into();
        method.form = evil.into();
        method.settings[0].name = evil.into();
        general.text = evil.into();
        general.paired = Some(Paired { test: evil.into(), p: 0.5 });
        resources.stages[0].name = evil.into();
    }
    for answer in &mut data.answers {
        answer.prompt = evil.into();
        answer.expected = Some(evil.into());
        answer.before = Some(evil.replace('1', "2"));
        answer.after = Some(evil.into());
    }
    let html = render(&data);
    well_formed(&html).unwrap();
    assert_eq!(html.matches("<script>").count(), 1);
    assert!(!html.contains("<img"));
}

/// A section's heading, and how to take away what it shows.
type Case = (&'static str, fn(&mut ReportData));

#[test]
fn a_missing_part_leaves_no_heading() {
    let whole = render(&full());
    let cases: [Case; 8] = [
        ("task", |d| {
            d.tasks.clear();
            d.fields.clear();
        }),
        ("general", |d| d.general = None),
        ("training", |d| d.curve.clear()),
        ("answers", |d| d.answers.clear()),
        ("inside", |d| d.changes.clear()),
        ("setup", |d| {
            d.model = None;
            d.method = None;
            d.data.clear();
            d.cuts.clear();
        }),
        ("resources", |d| d.resources = None),
        ("reproduce", |d| {
            d.command.clear();
            d.artefacts.clear();
        }),
    ];
    for (id, clear) in cases {
        let mark = format!("<section id=\"{id}\">");
        assert!(whole.contains(&mark), "{id}");
        let mut data = full();
        clear(&mut data);
        let html = render(&data);
        assert!(!html.contains(&mark) && !html.contains(&format!("#{id}\"")), "{id}");
        well_formed(&html).unwrap();
    }
    let bare = render(&ReportData::default());
    well_formed(&bare).unwrap();
    for word in ["<h2", "<h3", "<nav", "<footer", "<table", "<ul", "<svg"] {
        assert!(!bare.contains(word), "{word}");
    }
    let setup_only = ReportData { model: full().model, ..ReportData::default() };
    assert_eq!(render(&setup_only).matches("<h3").count(), 1);
}

#[test]
fn numbers_that_are_none_do_no_harm() {
    let mut data = full();
    let nan = Some(Measured { value: f64::NAN, ci95: Some([f64::NAN, f64::INFINITY]) });
    data.curve[3].loss = Some(f64::NAN);
    data.curve[4].loss = Some(f64::INFINITY);
    data.evals[0].loss = f64::NAN;
    data.changes[5].relative_norm = f64::NAN;
    data.tasks[0].before = nan;
    data.general.as_mut().unwrap().after = nan;
    let html = render(&data);
    well_formed(&html).unwrap();
    assert!(!html.contains("NaN"));
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &data).unwrap();
    assert!(read(dir.path()).unwrap().evals[0].loss.is_nan());
}

#[test]
fn the_page_can_be_made_again_from_its_facts() {
    let dir = tempfile::tempdir().unwrap();
    let data = full();
    let path = write(dir.path(), &data).unwrap();
    let again = read(dir.path()).unwrap();
    assert_eq!((again.answers.len(), &again.tasks), (20, &data.tasks));
    assert_eq!(std::fs::read_to_string(path).unwrap(), render(&again));
    assert_eq!(read(&dir.path().join("nowhere")).unwrap_err().exit_code(), 2);
}

#[test]
fn metrics_become_curves() {
    let lines = [
        r#"{"step":1,"loss":2.5,"learning_rate":0.1,"grad_norm":1.0,"tokens_per_second":9.0}"#,
        r#"{"step":1,"eval_loss":2.0}"#,
        r#"{"step":2,"loss":1.5}"#,
        r#"{"step":2,"sample_prompt":"a","sample_text":"b"}"#,
        r#"{"step":2,"train_loss":2.0}"#,
    ]
    .map(|l| serde_json::from_str(l).unwrap());
    let (curve, evals) = from_metrics(&lines);
    assert_eq!(curve.len(), 2);
    assert_eq!((curve[0].step, curve[0].loss, curve[0].grad_norm), (1, Some(2.5), Some(1.0)));
    assert_eq!(curve[1].learning_rate, None);
    assert_eq!(evals, [EvalPoint { step: 1, loss: 2.0 }]);
}

#[test]
fn marks_stand_where_the_numbers_are() {
    let html = render(&full());
    // 95 % exact match on a scale from 0 to 100 %, and its interval.
    assert!(html.contains("class=\"mark after\" cx=\"95.00%\""));
    assert!(html.contains("class=\"span after\" x1=\"89.50%\" x2=\"98.00%\""));
    assert_eq!(html.matches("class=\"cell\"").count(), 2 * 210);
    assert_eq!(html.matches("<article").count(), 20);
}

/// For looking at: `cargo test -p luthier-recipe --release -- --ignored a_page_to_look_at` writes
/// the page of made-up numbers and says where.
#[test]
#[ignore = "writes a page for a person to look at"]
fn a_page_to_look_at() {
    let dir = std::env::temp_dir().join("luthier-report");
    println!("{}", write(&dir, &full()).unwrap().display());
}
