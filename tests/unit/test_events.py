"""What a step tells is what a watcher reads, whole and in order."""

from pathlib import Path

from toolwise.events import Event, EventReader, EventWriter, FileSink, print_event


def test_a_reader_sees_each_event_once_and_in_order(tmp_path: Path):
    file = tmp_path / "events.jsonl"
    writer = EventWriter("train-sft", FileSink(file), interval=0)
    reader = EventReader(file)
    assert list(reader.new()) == []
    writer.started()
    writer.progress(1, 4, "loss 2.1")
    assert [(e.step, e.state, e.done, e.total, e.note) for e in reader.new()] == [
        ("train-sft", "started", 0, 0, ""),
        ("train-sft", "progress", 1, 4, "loss 2.1"),
    ]
    writer.finished(3.5, tmp_path)
    (last,) = reader.new()
    assert (last.state, last.seconds, last.folder) == ("finished", 3.5, str(tmp_path))
    assert list(reader.new()) == []


def test_a_line_that_is_still_being_written_is_read_when_it_is_whole(tmp_path: Path):
    file = tmp_path / "events.jsonl"
    line = Event(step="promote", state="started", at=1.0).model_dump_json() + "\n"
    file.write_text(line[:20])
    reader = EventReader(file)
    assert list(reader.new()) == []
    file.write_text(line)
    assert [event.step for event in reader.new()] == ["promote"]


def test_progress_is_thinned_but_its_end_is_always_told():
    told: list[Event] = []
    writer = EventWriter("evaluate", told.append, interval=3600)
    for done in range(1, 101):
        writer.progress(done, 100)
    assert [event.done for event in told] == [1, 100]


def test_a_failure_carries_its_reason():
    told: list[Event] = []
    EventWriter("deploy", told.append).failed("port 8080 is taken")
    assert (told[0].state, told[0].note) == ("failed", "port 8080 is taken")


def test_without_a_watcher_a_step_prints(capsys, monkeypatch):
    monkeypatch.delenv("TOOLWISE_EVENTS", raising=False)
    EventWriter.of_environment("evaluate hdpo").progress(3, 3, "greedy")
    print_event(Event(step="report", state="started", at=0.0))
    assert capsys.readouterr().out == "evaluate hdpo: progress 3/3 greedy\nreport: started\n"
