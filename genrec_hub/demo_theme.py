"""How the demo looks: theme, styles and script, with the fonts that the visitor's system has."""

from pathlib import Path

import gradio as gr

_FOLDER = Path(__file__).parent
STYLES = (_FOLDER / "demo.css").read_text(encoding="utf-8")
SCRIPT = (_FOLDER / "demo.js").read_text(encoding="utf-8")


def theme() -> gr.themes.Base:
    """The colours, borders and fonts."""
    sans = ("ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
    mono = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")
    soft = gr.themes.Soft(primary_hue="teal", secondary_hue="teal", neutral_hue="slate", radius_size="lg", font=sans, font_mono=mono)
    return soft.set(
        block_border_width="1px",
        block_shadow="none",
        block_title_background_fill="transparent",
        block_title_background_fill_dark="transparent",
        block_title_padding="0",
        block_title_text_color="*body_text_color",
        block_title_text_color_dark="*body_text_color",
        block_label_background_fill="transparent",
        block_label_background_fill_dark="transparent",
        block_label_text_color="*body_text_color",
        block_label_text_color_dark="*body_text_color",
        body_text_color_subdued="*neutral_500",
        body_text_color_subdued_dark="*neutral_400",
        block_info_text_color="*neutral_500",
        block_info_text_color_dark="*neutral_400",
        block_label_border_width="0",
        input_border_width="1px",
        input_border_color="*neutral_200",
        input_background_fill="*neutral_50",
        input_shadow="none",
        input_shadow_focus="none",
        checkbox_border_color="*neutral_400",
        checkbox_border_color_dark="*neutral_400",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_hover_dark="*primary_600",
        button_primary_text_color="white",
        button_secondary_border_color="*border_color_primary",
        button_small_padding="5px 13px",
        button_border_width="1px",
        button_secondary_shadow="none",
    )
