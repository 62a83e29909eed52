"""Twenty-eight ways in which evaluations of language models have been wrong, and the test of each.

    H1   left padding enters convolutions and states            test_padding
    H2   a mask on the values alone, interior padding           test_padding
    H3   right padding enters the final state                   test_padding
    H4   packed documents leak; a mask and bounds together      test_padding
    H5   position ids under left padding                        test_padding
    H6   pads and neighbours compete for capacity               test_padding
    H7   results change with the batch size                     test_scoring_hazards
    H8   a token across context and continuation                test_harness
    H9   a space at the boundary                                test_harness
    H10  BOS missing or doubled                                 test_harness
    H11  rolling windows reset the state, or score twice        test_scoring_hazards, test_harness, test_positions
    H12  a context is cut in silence                            test_scoring_hazards
    H13  the room for new tokens cuts the needle                test_harness, test_needles
    H14  automatic batch sizes that run out of memory           test_scoring_hazards
    H15  the context is computed again for each choice          test_scoring_hazards, test_prefix_tree
    H16  a response cache that does not know the model          test_scoring_hazards, test_response_cache
    H17  cached prompts that do not know the questions          test_catalogue
    H18  stop strings are ignored                               test_harness
    H19  a stop inside a token, or over several                 test_harness
    H20  haystacks built by tokenising again and again          test_needles
    H21  zero scores from a broken prompt                       test_needle_scores
    H22  prompts drift between tasks of one name                test_catalogue, tools/test_report_page
    H23  uneven ranks repeat requests                           test_processes
    H24  sums in low precision                                  test_scoring_hazards
    H25  evaluation disturbs training                           test_training_goes_on, tools/test_in_loop
    H26  logits of a large vocabulary                           test_scoring_hazards
    H27  ties go to the first answer                            test_catalogue, test_evaluate
    H28  errors by a slow bootstrap                             test_evaluate

Tests in this folder carry the number in their name. The others belong to the part they test; here is where.
"""

import ast
import inspect
from pathlib import Path

import pytest

import hybridlm

ELSEWHERE = {
    "H8": ["test_harness.test_every_continuation_has_tokens_and_nothing_is_lost"],
    "H9": ["test_harness.test_space_between_context_and_continuation_belongs_to_the_continuation"],
    "H10": ["test_harness.test_bos_is_the_first_token_of_every_sequence_and_only_there"],
    "H11": [
        "test_harness.test_rolling_windows_start_with_bos_and_score_each_token_once",
        "test_positions.test_a_carried_recurrent_state_equals_the_single_pass",
    ],
    "H13": [
        "test_harness.test_generation_leaves_room_and_counts_the_cut",
        "test_needles.test_lengths_are_exact_and_needles_whole_for_every_tokenizer",
    ],
    "H17": ["test_catalogue.test_editing_a_document_changes_prompts_and_hash"],
    "H18": ["test_harness.test_generation_ends_at_the_stop", "test_harness.test_text_is_cut_before_the_first_stop"],
    "H19": ["test_harness.test_a_stop_of_several_bytes_and_broken_bytes"],
    "H20": ["test_needles.test_a_prompt_costs_one_call_of_the_tokenizer"],
    "H21": ["test_needle_scores.test_an_oracle_scores_everything_and_a_random_model_nothing"],
    "H22": [
        "test_catalogue.test_other_prompts_have_another_hash",
        "../tools/test_report_page.test_a_task_that_was_not_the_same_is_not_compared",
    ],
    "H25": ["../tools/test_in_loop.test_training_does_not_notice_that_it_is_measured"],
    "H27": [
        "test_catalogue.test_shuffled_answers_leave_a_constant_model_at_chance",
        "test_evaluate.test_ties_are_counted",
    ],
    "H28": ["test_evaluate.test_scores_of_piqa_by_hand"],
}
FOLDER = Path(inspect.getfile(hybridlm)).parent / "tests" / "eval"


def names_in(*files: Path) -> list[str]:
    nodes = [node for file in files for node in ast.parse(file.read_text(encoding="utf-8")).body]
    return [node.name for node in nodes if isinstance(node, ast.FunctionDef)]


@pytest.mark.parametrize("hazard", [f"H{i}" for i in range(1, 29)])
def test_every_hazard_has_a_test(hazard):
    here = names_in(*Path(__file__).parent.glob("test_*.py"))
    own = any(name.startswith(f"test_h{int(hazard[1:]):02}_") for name in here)
    assert own or hazard in ELSEWHERE
    assert f"    {hazard} " in (__doc__ or "")
    for pointer in ELSEWHERE.get(hazard, []):
        file, name = pointer.rsplit(".", 1)
        assert name in names_in(FOLDER / f"{file}.py"), f"{hazard}: {file} has no {name} any more; say where it went"
