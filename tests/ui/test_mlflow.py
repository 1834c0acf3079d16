"""What a person finds in the MLflow UI after a sweep."""

from urllib.parse import quote

import pytest

from tests.pipelines.conftest import runs_of

pytestmark = pytest.mark.full
TRAINING = "workflowType=machine_learning"


def test_the_parent_run_says_what_came_out(browser, server, client, parent):
    listed = {
        item.path for folder in ("tables", "figures") for item in client.list_artifacts(parent.info.run_id, folder)
    }
    assert {"tables/attacks.md", "tables/cells.csv", "figures/bits-digits-mnist_a.png"} <= listed
    page = browser.new_page()
    page.goto(f"{server}/#/experiments/{parent.info.experiment_id}/runs/{parent.info.run_id}?{TRAINING}")
    page.get_by_text("attack sweep, 4 cells").first.wait_for()
    page.get_by_text("Show more").first.click()
    page.get_by_role("cell", name="FP", exact=True).first.wait_for()
    with browser.expect_page() as opened:
        page.get_by_text("in parallel coordinates, and their images").click()
    view = opened.value
    view.get_by_text("Parallel Coordinates", exact=True).first.wait_for()
    view.get_by_text("4 matching runs").wait_for()
    view.get_by_text("width_in_bits").first.wait_for()
    assert view.get_by_text("No chart data available").count() == 0
    view.close()
    page.close()


@pytest.mark.parametrize(("axis", "value", "count"), [("bits", "FP", 2), ("attack", "fgsm", 4), ("seed", "1", 2)])
def test_runs_are_filtered_by_every_axis(browser, server, parent, axis, value, count):
    page = browser.new_page()
    condition = quote(f"params.{axis} = '{value}' and tags.kind = 'attack'")
    flat = "orderByKey=" + quote("metrics.`adversarial_accuracy`")
    runs = f"{server}/#/experiments/{parent.info.experiment_id}/runs"
    page.goto(f"{runs}?{TRAINING}&{flat}&searchFilter={condition}")
    page.get_by_text(f"{count} matching runs").wait_for()
    page.close()


def test_an_attack_has_pictures_and_a_table(browser, server, client, parent):
    run = runs_of(client, "attack")[0].info
    page = browser.new_page()
    page.goto(f"{server}/#/experiments/{run.experiment_id}/runs/{run.run_id}/artifacts?{TRAINING}")
    page.get_by_text("per_image.json").first.click()
    page.get_by_text("adv_prediction").first.wait_for()
    page.get_by_text("images.png").first.click()
    page.locator("img[src*='images.png'], img[src^='blob:']").first.wait_for()
    page.close()
