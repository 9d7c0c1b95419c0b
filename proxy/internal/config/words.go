package config

import "strings"

// nearest returns the word that s was probably meant to be, or "" if none is near.
func nearest(s string, words []string) string {
	plain := func(s string) string {
		return strings.ToLower(strings.NewReplacer("-", "", "_", "", " ", "").Replace(s))
	}
	if s = plain(s); len(s) > 40 {
		return ""
	}
	best, bestDistance := "", 3
	for _, w := range words {
		// Two slips in a long word are a typing error, in a short one another word.
		if d := distance(s, plain(w)); d < bestDistance && d*3 <= len(w) {
			best, bestDistance = w, d
		}
	}
	return best
}

// distance counts the letters to insert, delete or replace to make a into b.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			replace := diagonal
			if a[i] != b[j] {
				replace++
			}
			diagonal = row[j+1]
			row[j+1] = min(replace, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// oneOf lists the words of a choice: "a", "a or b", "a, b or c".
func oneOf(words []string) string {
	last := len(words) - 1
	if last <= 0 {
		return strings.Join(words, "")
	}
	return strings.Join(words[:last], ", ") + " or " + words[last]
}
